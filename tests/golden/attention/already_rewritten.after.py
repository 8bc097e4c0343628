# What was rewritten once is left alone.
# block: Attention("Block")
# skip: line 8: qkv: already rewritten
# skip: line 8: o: already rewritten


class Block(nn.Module):
    def forward(self, hidden_states):
        q, k, v = self.apply_qkv(hidden_states)
        return self.o_proj(attend(q, k, v))
