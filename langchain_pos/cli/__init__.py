"""The command `langchain-pos`."""
