"""The options of the store, checked before it is opened."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

MAX_PUT_BYTES: Final = 5 * 1024**3
"""The largest object of one PUT: Amazon S3 User Guide, "Uploading objects"."""

MAX_PAYLOAD_BYTES: Final = MAX_PUT_BYTES - 64 * 1024**2
"""Leaves room for the headers of the records in the same object."""

DEFAULT_PAYLOAD_BYTES: Final = 256 * 1024**2


class S3Options(BaseModel):
    """Options of the store "s3".

    Attributes:
        bucket: the bucket, which has to exist.
        prefix: what the keys of all objects begin with, without the "/" at its end.
        endpoint_url: of a server that is not Amazon's, such as "http://localhost:9000".
        region: such as "eu-central-1"; None leaves it to boto3.
        access_key_id: None leaves the credentials to boto3: environment, files, roles.
        secret_access_key: goes with ``access_key_id``.
        session_token: goes with temporary ones.
        profile: of boto3's configuration files.
        addressing_style: where the bucket's name stands in URLs.
        sse: encryption at rest that every PUT asks for; None is the bucket's default.
        sse_kms_key_id: the key for "aws:kms"; None is the account's.
        storage_class: that every PUT asks for, such as "STANDARD_IA"; None is the default.
        checksum: what proves that an object arrived whole: "default" is what botocore does,
            "sha256" sends the SHA-256 as a header, "md5" does what servers understand that are
            older than the other checksums.
        request_checksum_calculation: "when_required" keeps botocore from adding checksums that
            some servers refuse.
        connect_timeout_seconds: how long to wait for a connection.
        read_timeout_seconds: how long to wait for an answer.
        max_attempts: how often a request is tried while that may help; 1 never repeats.
        max_connections: requests at a time.
        max_payload_bytes: the largest payload of one record.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    bucket: str = Field(min_length=1, max_length=255)
    prefix: str = ""
    endpoint_url: str | None = None
    region: str | None = None
    access_key_id: str | None = None
    secret_access_key: SecretStr | None = None
    session_token: SecretStr | None = None
    profile: str | None = None
    addressing_style: Literal["auto", "path", "virtual"] = "auto"
    sse: Literal["AES256", "aws:kms"] | None = None
    sse_kms_key_id: str | None = None
    storage_class: str | None = None
    checksum: Literal["default", "sha256", "md5"] = "default"
    request_checksum_calculation: Literal["when_supported", "when_required"] = "when_supported"
    connect_timeout_seconds: float = Field(default=5.0, gt=0, le=300, allow_inf_nan=False)
    read_timeout_seconds: float = Field(default=30.0, gt=0, le=3600, allow_inf_nan=False)
    max_attempts: int = Field(default=3, ge=1, le=10)
    max_connections: int = Field(default=32, ge=2, le=1000)
    max_payload_bytes: int = Field(default=DEFAULT_PAYLOAD_BYTES, ge=1, le=MAX_PAYLOAD_BYTES)

    @field_validator("endpoint_url")
    @classmethod
    def _check_endpoint(cls, value: str | None) -> str | None:
        # Such a server takes signed requests, not a user and a password; and it is printed.
        if value is not None and "@" in value:
            raise ValueError(
                "it holds credentials: leave them to boto3, or give access_key_id and "
                "secret_access_key"
            )
        return value

    @model_validator(mode="after")
    def _check_what_goes_together(self) -> S3Options:
        if (self.access_key_id is None) != (self.secret_access_key is None):
            raise ValueError("access_key_id and secret_access_key are given together or not at all")
        if self.session_token is not None and self.access_key_id is None:
            raise ValueError("session_token goes with access_key_id and secret_access_key")
        if self.profile is not None and self.access_key_id is not None:
            raise ValueError("profile and access_key_id exclude each other")
        if self.sse_kms_key_id is not None and self.sse != "aws:kms":
            raise ValueError('sse_kms_key_id goes with sse="aws:kms"')
        return self
