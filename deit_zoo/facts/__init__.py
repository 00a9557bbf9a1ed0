"""What is known of models, recipes and speed, in words: for terminal, page and notebook."""
