# Trap: dropout before down: t5gemma, gte.
# block: GatedMLP("Block")
# site: line 11: mlp call-alone: gate_proj
# site: line 11: mlp call-alone: up_proj
# site: line 13: mlp call-alone: down_proj
# skip: line 12: mlp: not a gated MLP: `self.dropout(hidden_states)` stands in between


class Block(nn.Module):
    def forward(self, x):
        hidden_states = self.act_fn(self.gate_proj(x)) * self.up_proj(x)
        hidden_states = self.dropout(hidden_states)
        down_proj = self.down_proj(hidden_states)
        return down_proj
