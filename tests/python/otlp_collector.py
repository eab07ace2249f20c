"""A collector of spans, for tests: reads what it is sent with OpenTelemetry's own protocol buffers, and appends each span
to a file, one JSON object a line. Prints its port first.

    otlp_collector.py FILE
"""

import http.server
import json
import sys

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


def attributes(pairs):
    return {pair.key: pair.value.string_value for pair in pairs}


class Collector(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        right = self.path == "/v1/traces" and self.headers["content-type"] == "application/x-protobuf"
        if not right:
            self.send_error(404)
            return
        request = ExportTraceServiceRequest.FromString(body)
        with open(sys.argv[1], "a") as file:
            for resource in request.resource_spans:
                of = attributes(resource.resource.attributes)
                for scope in resource.scope_spans:
                    for span in scope.spans:
                        told = {
                            "service": of["service.name"],
                            "version": of["service.version"],
                            "trace": span.trace_id.hex(),
                            "span": span.span_id.hex(),
                            "parent": span.parent_span_id.hex(),
                            "name": span.name,
                            "kind": span.kind,
                            "begun": span.start_time_unix_nano,
                            "ended": span.end_time_unix_nano,
                            "error": span.status.code == 2,
                            "message": span.status.message,
                            "attributes": attributes(span.attributes),
                            "key": self.headers.get("x-key", ""),
                        }
                        file.write(json.dumps(told) + "\n")
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector)
print(server.server_address[1], flush=True)
server.serve_forever()
