"""Who somebody is and what they may do: tokens, checkers, policy, private files."""
