# Gate and up have a limit, which the object holds: deepseek_v4.
# block: GatedMLP("Block", limit="limit")
# site: line 8: mlp gated-mlp: gate_proj up_proj act_fn down_proj


class Block(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.apply_mlp(x, limit=self.limit)
