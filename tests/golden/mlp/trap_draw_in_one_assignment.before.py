# Trap: an assignment of two values, one of which is something else and may draw random numbers.
# block: GatedMLP("Block")
# site: line 11: mlp call-alone: gate_proj
# site: line 12: mlp call-alone: up_proj
# site: line 12: mlp call-alone: down_proj
# skip: line 11: mlp: not a gated MLP: `gate, noise = self.gate_proj(x), self.dropout(y)` also computes `noise`


class Block(nn.Module):
    def forward(self, x, y):
        gate, noise = self.gate_proj(x), self.dropout(y)
        return self.down_proj(self.act_fn(gate) * self.up_proj(x))
