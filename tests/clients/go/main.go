// Command adapter runs the Go client github.com/tmaxmax/go-sse until it is ended and prints what happens, one JSON object a line.
package main

import (
	"context"
	"encoding/json"
	"net/http"
	"os"
	"time"

	"github.com/tmaxmax/go-sse"
)

func put(t string, more map[string]any) {
	if more == nil {
		more = map[string]any{}
	}
	more["t"] = t
	if err := json.NewEncoder(os.Stdout).Encode(more); err != nil {
		os.Exit(1)
	}
}

func main() {
	var options struct{ URL string }
	if err := json.Unmarshal([]byte(os.Args[1]), &options); err != nil {
		panic(err)
	}
	request, err := http.NewRequestWithContext(context.Background(), http.MethodGet, options.URL, http.NoBody)
	if err != nil {
		panic(err)
	}
	client := sse.Client{
		OnRetry: func(err error, after time.Duration) {
			put("error", map[string]any{"message": err.Error() + ", again in " + after.String()})
		},
	}
	connection := client.NewConnection(request)
	// Its documentation asks for this where events may be larger than 64 KiB.
	connection.Buffer(make([]byte, 0, 64<<10), 4<<20)
	connection.SubscribeToAll(func(e sse.Event) {
		name := e.Type
		if name == "" {
			name = "message"
		}
		put("event", map[string]any{"id": e.LastEventID, "event": name, "data": e.Data})
	})
	put("close", map[string]any{"message": connection.Connect().Error()})
	time.Sleep(time.Hour) // given up: the driver wants to see that it stays so
}
