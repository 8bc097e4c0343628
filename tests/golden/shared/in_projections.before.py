# Four layers of one input, by their own names: the linear attention of qwen3_5.
# block: SharedInput("Block", groups=(("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a"),))
# site: line 11: linear shared-input: in_proj_qkv in_proj_z in_proj_b in_proj_a


class Block(nn.Module):
    def forward(self, hidden_states, cache_params=None):
        batch_size, seq_len, _ = hidden_states.shape

        # the convolution wants channels first
        mixed_qkv = self.in_proj_qkv(hidden_states)
        mixed_qkv = mixed_qkv.transpose(1, 2)

        z = self.in_proj_z(hidden_states)
        z = z.reshape(batch_size, seq_len, -1, self.head_v_dim)

        b = self.in_proj_b(hidden_states)
        a = self.in_proj_a(hidden_states)
        return self.out_proj(scan(self.conv1d(mixed_qkv), z, b.sigmoid(), a))
