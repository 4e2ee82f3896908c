"""The same data sets, metrics and models inside lmms-eval; nothing else imports this package."""
