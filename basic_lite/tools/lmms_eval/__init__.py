"""The model `basic_lite` of lmms-eval: ``python -m lmms_eval --model basic_lite --model_args run=RUN --tasks …``.

manifest.py    what lmms-eval finds by the entry point
model.py       the class that lmms-eval asks; with manifest.py the only one that imports it
arguments.py   what its command line and its tasks ask for, taken or refused
pictures.py    what its tasks show
asker.py       a run is asked their questions, as `basic-lite eval` asks
likelihood.py  how likely a given answer is
"""
