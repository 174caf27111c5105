"""`python -m wv_train`: the same as `wv-train`, for torchrun."""

from wv_train.cli import main

if __name__ == "__main__":
    main()
