"""The other model servers that this one is compared with, each written and tuned as its competent user would."""
