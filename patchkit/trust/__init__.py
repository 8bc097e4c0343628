"""What is proven, and what may be bound because of it: the ledger, its keys and the policy.

It stands below ``api`` and above ``binding``. One import runs up from here, and late: the policy loads
``patchkit.check.numeric`` when there is something to verify on the spot. The ledger imports no torch.
"""
