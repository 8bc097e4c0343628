# Gate and up have a limit, which the object holds: deepseek_v4.
# block: GatedMLP("Block", limit="limit")
# site: line 8: mlp gated-mlp: gate_proj up_proj act_fn down_proj


class Block(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = self.gate_proj(x).clamp(max=self.limit)
        up = self.up_proj(x).clamp(min=-self.limit, max=self.limit)
        return self.down_proj(self.act_fn(gate) * up)
