# Recall by rows kept, as recall --csv writes it: gnuplot -c examples/recall.gp recall.csv picture.svg
data = ARG1
set terminal svg size 860,430 font 'sans-serif,13' background rgb 'white'
set output ARG2
set datafile separator ','
set title 'answers that are right, by rows kept of 433 a head, evicted before any question is known'
set xlabel 'rows a head'
set ylabel 'share of answers'
set logscale x 2
set xtics (12, 24, 32, 64, 128)
set xrange [11:140]
set yrange [0:1]
set grid ytics lc rgb '#dddddd'
set key outside right
series = "dense 'repeat: model shares' 'repeat: heads alone' 'matching: repeat' cur expected keydiff adakv snapkv h2o sinks random"
label(name) = name eq 'repeat: model shares' ? 'KVzip, model budget' : name eq 'repeat: heads alone' ? 'KVzip, head budgets' : name eq 'matching: repeat' ? 'compaction, model budget' : name
plot for [i = 1:words(series)] data using (strcol(1) eq word(series, i) ? $2 : NaN):3 with linespoints lt ((i - 1) % 7 + 1) dt 1 + 2 * (i > 7) lw 2 pt (i > 7 ? 6 : 7) ps .6 title label(word(series, i))
