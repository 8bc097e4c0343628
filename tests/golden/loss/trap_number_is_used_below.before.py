# What a condition names is used below.
# block: LanguageModel("Model")
# skip: line 21: loss: no loss: `cap` is bound between the head and the loss, and used elsewhere


class Model(PreTrainedModel):
    @can_return_tuple
    def forward(self, input_ids, labels=None, logits_to_keep=0, **kwargs):
        outputs = self.model(input_ids, **kwargs)
        logits = self.lm_head(outputs[0])
        if (cap := self.config.cap) is not None:
            logits = torch.tanh(logits / cap) * cap

        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)

        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=cap,
        )
