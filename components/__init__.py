"""One room a stage: ``stage.py`` does the work and knows no kfp, ``component.py`` is its KFP component."""
