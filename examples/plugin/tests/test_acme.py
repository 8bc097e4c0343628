from patchkit.testing import verify_architecture


def test_acme() -> None:
    verify_architecture("acme")
