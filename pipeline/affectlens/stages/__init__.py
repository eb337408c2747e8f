"""One module a stage, in the order of the data; ``affectlens.study.STAGES`` lists them."""
