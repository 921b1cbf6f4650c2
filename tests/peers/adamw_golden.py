"""Five steps of torch.optim.AdamW in double precision: the table in tests/unit/test_ref_adamw.c."""
import torch

parameters = torch.nn.Parameter(torch.tensor([0.5, -1.25, 2.0, 0.0078125], dtype=torch.float64))
gradients = [
    [0.125, -0.25, 0.375, 1.0],
    [0.0625, 0.5, -0.625, 0.0],
    [-0.25, 0.125, 0.0, 2.0],
    [0.0001220703125, -3.0, 0.25, -1.0],
    [0.75, 0.75, -0.75, 0.0000019073486328125],
]
optimizer = torch.optim.AdamW([parameters], lr=1e-2, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1)
print(f"torch {torch.__version__}")
for gradient in gradients:
    parameters.grad = torch.tensor(gradient, dtype=torch.float64)
    optimizer.step()
    print("{" + ", ".join(f"{value:.17g}" for value in parameters.detach().tolist()) + "},")
