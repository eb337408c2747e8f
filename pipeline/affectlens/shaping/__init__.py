"""Ways to change a model's emotional states: arms, texts, losses, training, rules at inference, and their measures."""
