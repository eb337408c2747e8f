"""One module a stage, in the order of the data; ``pipeline.study.STAGES`` lists them."""
