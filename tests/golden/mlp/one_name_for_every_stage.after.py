# One name for several stages and for the input: recurrent_gemma, llama4.
# block: GatedMLP("Block")
# site: line 8: mlp gated-mlp: gate_proj act_fn up_proj down_proj


class Block(nn.Module):
    def forward(self, x):
        x = self.apply_mlp(x)
        return x
