"""Who says what an answer amounts to: rules, tests that the answered code is run against, or judges."""
