"""`python -m debias` is the same as `debias`."""

from debias.cli import main

if __name__ == "__main__":
    main()
