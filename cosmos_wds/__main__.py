"""`python -m cosmos_wds ...` and `torchrun -m cosmos_wds ...` start the same command line."""

from cosmos_wds.cli import main

if __name__ == "__main__":
    main()
