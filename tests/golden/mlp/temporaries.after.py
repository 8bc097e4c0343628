# Every stage on its own line.
# block: GatedMLP("Block")
# site: line 9: mlp gated-mlp: gate_proj up_proj act_fn down_proj


class Block(nn.Module):
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        # gate
        # activation
        return self.apply_mlp(hidden_states)
