"""Profiles of `~/.aws`, read by boto3."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError
from pipeline.objects.server import Server


def profile_settings(server: Server) -> dict[str, Any]:
    """Return the arguments of obstore's S3 store that use a profile of `~/.aws`, if one is to be.

    obstore knows keys in the environment, roles of machines and containers, and web identities.
    What is in `~/.aws` (profiles, SSO, assumed roles) is read by boto3, where that is installed.

    Raises:
        ConfigError: AWS_PROFILE is set and boto3 is missing, or does not know the profile.
    """
    profile = os.environ.get("AWS_PROFILE", "")
    if os.environ.get("AWS_ACCESS_KEY_ID") and not profile:
        return {}
    if ("skip_signature", "true") in server.settings or not (profile or _has_aws_files()):
        return {}
    if find_spec("boto3") is None:
        if not profile:
            return {}
        raise ConfigError(
            f"AWS_PROFILE={profile} is read by boto3, which is not installed: pip install boto3, "
            "or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    return _read_profile(profile, server)


def _has_aws_files() -> bool:
    names = {
        "AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials",
        "AWS_CONFIG_FILE": "~/.aws/config",
    }
    paths = (os.environ.get(name, default) for name, default in names.items())
    return any(Path(path).expanduser().is_file() for path in paths)


def _read_profile(profile: str, server: Server) -> dict[str, Any]:
    """Return the arguments of obstore's S3 store that a profile gives.

    Args:
        profile: Its name; empty for the default one.
        server: What the environment says, which comes first.

    Returns:
        A provider of credentials, which refreshes them, and settings; nothing if the default
        profile has no credentials.

    Raises:
        ConfigError: There is no such profile, or it has no credentials.
    """
    import boto3
    import botocore.exceptions
    from obstore.auth.boto3 import Boto3CredentialProvider

    try:
        session = boto3.Session(profile_name=profile or None)
        credentials = session.get_credentials()
    except botocore.exceptions.BotoCoreError as error:
        raise ConfigError(f"AWS_PROFILE={profile}: {error}") from None
    if credentials is None:
        if not profile:
            return {}
        raise ConfigError(f"AWS_PROFILE={profile} has no credentials; correct ~/.aws/credentials")
    config: dict[str, Any] = {}
    endpoint = session._session.get_scoped_config().get("endpoint_url")
    if endpoint and not server.endpoint:
        config["endpoint"] = endpoint
    return {"credential_provider": Boto3CredentialProvider(session), "config": config}
