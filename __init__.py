"""medalign: teacher-cached distillation of a medical CLIP expert into vision-language models.

This file imports nothing: test runners load it a second time, under the name of the checkout
folder, and any import here would load the package twice.
"""

__version__ = "0.1.0"
