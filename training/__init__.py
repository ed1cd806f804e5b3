"""How the shipped model is made: text generator, tokenizer, training, export and evaluation.

python -m training.train       train (resumable), export into langchain_pos/embedded/
python -m training.export      export a checkpoint by hand
python -m training.evaluate    score the shipped model on a file of questions
"""
