"""Authentication and authorization: tokens, checkers, policy, private files."""
