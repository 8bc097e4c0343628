# One projection for gate and up, gate first: phi3, glm, dia.
# block: GatedMLP("Block", gate_up="gate_up_proj", activation="activation_fn")
# site: line 8: mlp gated-mlp: gate_up_proj activation_fn down_proj


class Block(nn.Module):
    def forward(self, hidden_states: torch.FloatTensor) -> torch.FloatTensor:

        return self.apply_mlp(hidden_states)
