"""The making of the shipped model: text generator, tokenizer, training, export, evaluation.

python -m training.train       train (resumable), export into langchain_pos/embedded/
python -m training.export      export a checkpoint by hand
python -m training.evaluate    score the shipped model on a file of questions
"""
