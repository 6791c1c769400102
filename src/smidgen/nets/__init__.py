"""Networks: from the value in a trial to a PyTorch module."""
