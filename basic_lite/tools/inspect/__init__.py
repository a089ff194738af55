"""``basic-lite inspect``: does BASIC's premise hold for a vision-language model? Nothing is trained."""
