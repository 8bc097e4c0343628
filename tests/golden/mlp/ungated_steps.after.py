# No gate, one name for every stage: clip, siglip, phi.
# block: MLP("Block")
# site: line 8: mlp ungated-mlp: fc1 activation_fn fc2


class Block(nn.Module):
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = self.apply_mlp(hidden_states)
        return hidden_states
