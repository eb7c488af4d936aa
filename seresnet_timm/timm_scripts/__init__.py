"""timm's own train.py and validate.py: which file to run, where to get it, and what is changed in memory."""
