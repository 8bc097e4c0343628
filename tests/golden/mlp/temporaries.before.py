# Every stage on its own line.
# block: GatedMLP("Block")
# site: line 9: mlp gated-mlp: gate_proj up_proj act_fn down_proj


class Block(nn.Module):
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        # gate
        gate: torch.Tensor = self.gate_proj(hidden_states)
        up: torch.Tensor = self.up_proj(hidden_states)  # up

        # activation
        gate = self.act_fn(gate)
        product = gate * up
        return self.down_proj(product)
