"""Published sequential models by item ids alone, namely SASRec, BERT4Rec and HSTU, and their training.

Takes item sequences and a recipe by kind of data. Gives models that rank the same candidates as the encoder.
"""
