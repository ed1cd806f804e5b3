"""`python -m langchain_pos`: the command line, where its script is not on the path."""

from langchain_pos.cli.main import main

if __name__ == "__main__":
    main()
