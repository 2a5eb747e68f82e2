"""boto3 for the tests: reads a command a line, as JSON, and answers with a line each. The bucket is `bucket`; where it is, and keys, are in AWS_*."""

import io
import json
import sys

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import ClientError

BUCKET = "bucket"
# The smallest that S3 has for all parts but the last.
PART_BYTES = 5 << 20
# Of a swap: somebody else was faster each time.
ATTEMPTS_MAX = 100

s3 = boto3.client("s3", config=Config(proxies={}, s3={"addressing_style": "path"}))


def put(key, text):
    s3.put_object(Bucket=BUCKET, Key=key, Body=text.encode("latin-1"))


def put_parts(key, text):
    """An upload in parts, of however few bytes."""
    config = TransferConfig(multipart_threshold=1, multipart_chunksize=PART_BYTES)
    s3.upload_fileobj(io.BytesIO(text.encode("latin-1")), BUCKET, key, Config=config)


def begin_parts(key, text):
    """An upload of which one part is there, and that nobody completes."""
    upload = s3.create_multipart_upload(Bucket=BUCKET, Key=key)["UploadId"]
    s3.upload_part(Bucket=BUCKET, Key=key, UploadId=upload, PartNumber=1, Body=text.encode("latin-1"))


def uploads():
    """Key and number of parts of each upload that is not completed."""
    return [
        (found["Key"], len(s3.list_parts(Bucket=BUCKET, Key=found["Key"], UploadId=found["UploadId"]).get("Parts", [])))
        for found in s3.list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])
    ]


def copy(source, key):
    """By the server, in parts where there is more than one."""
    config = TransferConfig(multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES)
    s3.copy({"Bucket": BUCKET, "Key": source}, BUCKET, key, Config=config)


def delete(keys):
    """One by a request of its own, more by one request."""
    if len(keys) == 1:
        s3.delete_object(Bucket=BUCKET, Key=keys[0])
    else:
        answer = s3.delete_objects(Bucket=BUCKET, Delete={"Objects": [{"Key": key} for key in keys]})
        assert not answer.get("Errors"), answer["Errors"]


def look(key):
    """Text and ETag; nothing when there is no such object."""
    try:
        found = s3.get_object(Bucket=BUCKET, Key=key)
    except s3.exceptions.NoSuchKey:
        return None, None
    return found["Body"].read().decode("latin-1"), found["ETag"]


def get(key):
    return look(key)[0]


def keys(prefix, page):
    """Below a prefix, in pages of so many."""
    pages = s3.get_paginator("list_objects_v2").paginate(
        Bucket=BUCKET, Prefix=prefix, PaginationConfig={"PageSize": page}
    )
    return [found["Key"] for page in pages for found in page.get("Contents", [])]


def swap(key, text):
    """A put that tells what it has replaced."""
    for _ in range(ATTEMPTS_MAX):
        replaced, etag = look(key)
        condition = {"IfMatch": etag} if etag else {"IfNoneMatch": "*"}
        try:
            s3.put_object(Bucket=BUCKET, Key=key, Body=text.encode("latin-1"), **condition)
            return replaced
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] not in (404, 409, 412):
                raise
    raise RuntimeError(f"{key} is replaced all the time")


COMMANDS = {each.__name__: each for each in (put, put_parts, begin_parts, uploads, copy, delete, get, keys, swap)}

for line in sys.stdin:
    command = json.loads(line)
    try:
        answer = {"answer": COMMANDS[command.pop("do")](**command)}
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer), flush=True)
