// Streams a sequence of noise through one session, step by step, and prints a line a step: its index and the outputs.
//
//	go run . localhost:8500 MODEL
//
// docs/clients.md says how the package `pb` is made of the .proto.
package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log"
	"math"
	"os"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	pb "streamcell/v1"
)

const steps = 10

// Tensors travel as little-endian bytes in C order.
func toBytes(values []float32) []byte {
	bytes := make([]byte, 4*len(values))
	for at, value := range values {
		binary.LittleEndian.PutUint32(bytes[4*at:], math.Float32bits(value))
	}
	return bytes
}

func toFloats(bytes []byte) []float32 {
	values := make([]float32, len(bytes)/4)
	for at := range values {
		values[at] = math.Float32frombits(binary.LittleEndian.Uint32(bytes[4*at:]))
	}
	return values
}

func stream(target, model string) error {
	// Without TLS, as `streamcell serve` is by default; else grpc.WithTransportCredentials.
	connection, err := grpc.Dial(target, grpc.WithInsecure())
	if err != nil {
		return err
	}
	defer connection.Close()
	call, err := pb.NewStreamCellClient(connection).Stream(context.Background())
	if err != nil {
		return err
	}
	// Errors of Send say only that the call has ended; Recv says how.
	call.Send(&pb.StreamRequest{Open: &pb.OpenSession{Model: model}})
	reply, err := call.Recv()
	if err != nil {
		return err
	}
	inputs := reply.GetOpened().GetInputs()
	if len(inputs) != 1 || inputs[0].Dtype != "float32" {
		return fmt.Errorf("this example sends one float32 input; %s takes %v", model, inputs)
	}
	width := 1
	for _, size := range inputs[0].StepShape {
		width *= int(size)
	}
	for step := 1; step <= steps; step++ {
		values := make([]float32, width)
		for at := range values {
			values[at] = float32(math.Sin(float64(step + at)))
		}
		call.Send(&pb.StreamRequest{Inputs: [][]byte{toBytes(values)}})
		reply, err := call.Recv()
		if err != nil {
			return err
		}
		fmt.Print(reply.StepIndex)
		for _, output := range reply.Outputs {
			for _, value := range toFloats(output) {
				fmt.Printf(" %.6f", value)
			}
		}
		fmt.Println()
	}
	call.CloseSend() // closes the session after its last reply
	if _, err := call.Recv(); err != io.EOF {
		return err
	}
	return nil
}

func main() {
	if len(os.Args) != 3 {
		log.Fatal("usage: go run . TARGET MODEL")
	}
	if err := stream(os.Args[1], os.Args[2]); err != nil {
		// The reason is in the status's details, as a google.rpc.ErrorInfo: docs/errors.md.
		told := status.Convert(err)
		fmt.Fprintf(os.Stderr, "%s: %s\n", told.Code(), told.Message())
		os.Exit(1)
	}
}
