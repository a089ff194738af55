"""From records on disk to batches: records → conversation → token ids and label mask → batch.

``records`` reads, ``chat`` tokenises, ``images`` decodes and fits, ``check`` looks at everything before
step 0, ``dataset``, ``sampler`` and ``collate`` feed the trainer, ``show`` prints a sample.
"""
