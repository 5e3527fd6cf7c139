"""Where the first contents of a volume come from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from backends.schema import AbsolutePath, Model, Rule, Text
from backends.spec.common import SecretRef, VolumeRef
from backends.spec.formats import FileFormat


class CloneSource(Model):
    """Contents copied from another volume."""

    volume_ref: VolumeRef = Field(description="The volume to copy.")
    reflink: Literal["Auto", "Always", "Never"] = Field(
        "Auto", description="Whether blocks are shared with the source where the file system can."
    )


_Checksum = Annotated[
    str, Field(max_length=135, pattern=r"^(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})$")
]


class HttpAuth(Model):
    """How we prove ourselves to a web server."""

    rules = (
        Rule(
            cel="self.type != 'Basic' || !has(self.secretRef.key)",
            message="Basic reads the keys username and password of the secret, so a secretRef.key "
            "can't be given",
            holds=lambda self: self.type != "Basic" or self.secret_ref.key is None,
        ),
    )

    type: Literal["Basic", "Bearer"] = Field(
        description="Basic: user name and password; Bearer: a token."
    )
    secret_ref: SecretRef = Field(
        description="The secret: keys `username` and `password` for Basic, `token` for Bearer."
    )


class HttpSource(Model):
    """Contents fetched over HTTP."""

    rules = (
        Rule(
            cel="(!has(self.auth) && !has(self.caRef)) || self.url.startsWith('https://')",
            message="auth and caRef need an https address",
            holds=lambda self: (
                (self.auth is None and self.ca_ref is None) or self.url.startswith("https://")
            ),
        ),
        Rule(
            cel="(!has(self.auth) || !has(self.auth.secretRef.namespace)) "
            "&& (!has(self.caRef) || !has(self.caRef.namespace))",
            message="secrets of a volume's source are in the volume's own namespace, so a "
            "namespace can't be given",
            holds=lambda self: all(
                item is None or item.namespace is None
                for item in (self.auth and self.auth.secret_ref, self.ca_ref)
            ),
        ),
    )

    url: Text = Field(
        pattern=r"^https?://[^@/?#\s]+([/?][^\s#]*)?$",
        description="Address of the image, http or https, without a user name.",
    )
    checksum: _Checksum | None = Field(
        None, description="`sha256:HEX` or `sha512:HEX` of the bytes as fetched."
    )
    format: FileFormat | None = Field(
        None,
        description="Format of the image, once decompressed; what its header shows if left out.",
    )
    auth: HttpAuth | None = Field(
        None, description="How to prove ourselves; sent to the host of `url` alone."
    )
    ca_ref: SecretRef | None = Field(
        None,
        description="Certificates to trust for this address in place of the host's, as PEM; key "
        "`ca.crt` if none is given.",
    )

    @property
    def shown_url(self) -> str:
        """The address without its query, which may hold a secret."""
        return self.url.partition("?")[0]


class FileSource(Model):
    """Contents read from a file of the host."""

    path: AbsolutePath = Field(description="Path of the file.")
    checksum: _Checksum | None = Field(
        None, description="`sha256:HEX` or `sha512:HEX` of the file's bytes."
    )
    format: FileFormat | None = Field(
        None,
        description="Format of the image, once decompressed; what its header shows if left out.",
    )


class UploadSource(Model):
    """Contents that a later upload brings."""


class VolumeSource(Model):
    """Where a new volume's contents come from; blank if left out."""

    rules = (
        Rule(
            cel="[has(self.clone), has(self.http), has(self.file), has(self.upload)]"
            ".filter(given, given).size() == 1",
            message="give exactly one of clone, http, file and upload",
            holds=lambda self: (
                sum(v is not None for v in (self.clone, self.http, self.file, self.upload)) == 1
            ),
        ),
    )

    clone: CloneSource | None = Field(None, description="Another volume.")
    http: HttpSource | None = Field(None, description="An image on a web server.")
    file: FileSource | None = Field(None, description="A file of the host.")
    upload: UploadSource | None = Field(None, description="An upload that is to come.")
