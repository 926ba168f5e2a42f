"""An emulator of Google's storage API, with the rules that make a lock of an object.

`gcp-storage-emulator` answers one request after the other, but it ignores preconditions, does not
say the generation of what is downloaded, and cannot move an object. That is added here, as
https://cloud.google.com/storage/docs/request-preconditions and .../json_api/v1/objects/move say.

So is POST /disturb, by which the next requests are late or answered by an error (`bucket.disturb`).
"""

from http import HTTPStatus
import re
import sys
import time
import urllib.parse

from gcp_storage_emulator import exceptions, server
from gcp_storage_emulator.handlers import objects


def generation(request, storage):
  """The generation of the object that a request is about, '0' if there is none."""
  bucket, name = request.params.get('bucket_name'), request.query.get('name', [''])[0]
  try:
    return storage.get_file_obj(bucket, request.params.get('object_id', name))['generation']
  except exceptions.NotFound:
    return '0'


def guarded(handler):
  """A handler that does nothing to an object of another generation than the request expects."""

  def run(request, response, storage, *args):
    for word, refuses in (('Match', str.__ne__), ('NotMatch', str.__eq__)):
      expected = request.query.get(f'ifGeneration{word}')
      if expected and refuses(expected[0], generation(request, storage)):
        reads = request.method == server.GET and word == 'NotMatch'
        response.status = HTTPStatus.NOT_MODIFIED if reads else HTTPStatus.PRECONDITION_FAILED
        return
    if request.method == server.GET:
      response['x-goog-generation'] = generation(request, storage)
    handler(request, response, storage, *args)

  return run


def move(request, response, storage, *args):
  """POST .../o/NAME/moveTo/o/OTHER."""
  bucket, name = request.params['bucket_name'], request.params['object_id']
  try:
    there = request.params['other_id']
    response.json(objects._copy(request.base_url, storage, bucket, name, bucket, there))
    storage.delete_file(bucket, name)
  except exceptions.NotFound:
    response.status = HTTPStatus.NOT_FOUND


DISTURBED = {'left': 0}


def disturb(request, response, unused_storage):
  """Notes what is to happen, and says how many requests of the one before it never came."""
  response.json(dict(DISTURBED))
  DISTURBED.update(request.data)


def disturbed(handler):
  """A handler that does what `disturb` has noted, as often as that says."""

  def run(request, response, storage, *args):
    said = f'{request.method} {urllib.parse.unquote(request.full_url)}'
    _ = request.data  # Read to its end: the connection closes with the answer.
    ours = DISTURBED['left'] > 0 and re.search(DISTURBED['of'], said)
    if ours:
      DISTURBED['left'] -= 1
      time.sleep(DISTURBED['seconds'])
    if not ours or DISTURBED['does']:
      handler(request, response, storage, *args)
    if ours and DISTURBED['status'] != HTTPStatus.OK:
      response.status = HTTPStatus(DISTURBED['status'])
      response.json({'error': {'code': response.status.value, 'message': response.status.phrase}})

  return run


MOVE = r'^/storage/v1/b/(?P<bucket_name>[-.\w]+)/o/(?P<object_id>.+)/moveTo/o/(?P<other_id>.+)$'

if __name__ == '__main__':
  server.HANDLERS = (
    ('^/disturb$', {server.POST: disturb}),
    (MOVE, {server.POST: disturbed(move)}),
    *(
      (path, {how: disturbed(guarded(run)) for how, run in of.items()})
      for path, of in server.HANDLERS
    ),
  )
  # Nothing is lost of what many connections ask at once.
  server.server.HTTPServer.request_queue_size = 128
  server.Server('127.0.0.1', int(sys.argv[1]), True, default_bucket=sys.argv[2]).run()
