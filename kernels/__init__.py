"""How the inner loop is made fast: one folder per operation on tensors, its plain PyTorch form beside every fast one."""
