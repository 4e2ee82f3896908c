"""From the paper's original checkpoints to Hugging Face Llava folders, tensor by tensor."""
