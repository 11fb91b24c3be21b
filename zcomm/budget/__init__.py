"""Budgets: the accounts of users, and what is charged to them for what all share."""
