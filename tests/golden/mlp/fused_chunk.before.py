# One projection for gate and up, gate first: phi3, glm, dia.
# block: GatedMLP("Block", gate_up="gate_up_proj", activation="activation_fn")
# site: line 8: mlp gated-mlp: gate_up_proj activation_fn down_proj


class Block(nn.Module):
    def forward(self, hidden_states: torch.FloatTensor) -> torch.FloatTensor:
        up_states = self.gate_up_proj(hidden_states)

        gate, up_states = up_states.chunk(2, dim=-1)
        up_states = up_states * self.activation_fn(gate)

        return self.down_proj(up_states)
