// Classify an image: go run examples/classify.go IMAGE [URL]
// 429 and 503 are repeated, no sooner than Retry-After says.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"time"
)

const attempts = 5

type prediction struct {
	Label       string  `json:"label"`
	Index       int     `json:"index"`
	Probability float64 `json:"probability"`
}

type answer struct {
	Predictions []prediction `json:"predictions"`
	Title       string       `json:"title"`
	Detail      string       `json:"detail"`
	Code        string       `json:"code"`
}

// classify gives the predictions for an encoded image, most probable first.
func classify(url string, image []byte) ([]prediction, error) {
	for attempt := 1; ; attempt++ {
		response, err := http.Post(url+"/classify", "application/octet-stream", bytes.NewReader(image))
		if err != nil {
			return nil, err
		}
		var got answer
		err = json.NewDecoder(response.Body).Decode(&got)
		response.Body.Close()
		if err != nil {
			return nil, err
		}
		if response.StatusCode == http.StatusOK {
			return got.Predictions, nil
		}
		busy := response.StatusCode == http.StatusTooManyRequests || response.StatusCode == http.StatusServiceUnavailable
		if !busy || attempt == attempts {
			return nil, fmt.Errorf("%s: %s (%s)", got.Title, got.Detail, got.Code)
		}
		seconds, err := strconv.Atoi(response.Header.Get("Retry-After"))
		if err != nil {
			seconds = 1
		}
		time.Sleep(time.Duration(seconds) * time.Second)
	}
}

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: classify IMAGE [URL]")
		os.Exit(2)
	}
	url := "http://127.0.0.1:8000"
	if len(os.Args) > 2 {
		url = os.Args[2]
	}
	image, err := os.ReadFile(os.Args[1])
	if err == nil {
		var predictions []prediction
		if predictions, err = classify(url, image); err == nil {
			fmt.Printf("%s %.3f\n", predictions[0].Label, predictions[0].Probability)
			return
		}
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}
