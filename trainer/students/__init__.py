"""The model families that can be taught: what their folders say, where their visual tokens are."""
