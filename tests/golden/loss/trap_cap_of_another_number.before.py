# What is divided by is not what is multiplied by.
# block: LanguageModel("Model")
# skip: line 11: loss: no loss: `torch.tanh(logits / self.cap) * self.scale` is not a soft cap as it is known


class Model(PreTrainedModel):
    @can_return_tuple
    def forward(self, input_ids, labels=None, logits_to_keep=0, **kwargs):
        outputs = self.model(input_ids, **kwargs)
        logits = self.lm_head(outputs[0])
        logits = torch.tanh(logits / self.cap) * self.scale

        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)

        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
        )
